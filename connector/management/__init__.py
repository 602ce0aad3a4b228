"""The operator's and auditor's API: one file per noun, each a router factory over the services it needs."""
