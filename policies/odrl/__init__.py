"""Reading, writing and digesting ODRL policies in their JSON-LD form."""
