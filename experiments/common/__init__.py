"""What every room may use: errors, records on disk, provenance, progress, tables, pictures, compiled programs."""
