"""Tables and the results page from measured numbers; no metric is computed here."""
