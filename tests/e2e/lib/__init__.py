"""What the end-to-end tests share; no tests are in here."""
