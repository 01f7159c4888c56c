"""One short rule per method; each reads like its paper's pseudo-code."""
