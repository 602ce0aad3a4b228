"""The mutable side of agreements: grants with their counters and leases, facts about parties, duties that are owed."""
