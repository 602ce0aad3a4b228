"""Parts of console pages: charts, snippets, proof checks and formatted values."""
