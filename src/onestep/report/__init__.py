"""From measured numbers to tables and the results page; nothing is computed again here."""
