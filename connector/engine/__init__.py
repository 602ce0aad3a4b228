"""The query engine: worker processes, and what runs inside one."""
