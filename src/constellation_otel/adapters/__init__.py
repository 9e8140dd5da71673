"""Other people's engines: ``telling`` for any of them, and one module for each that has an adapter here."""
