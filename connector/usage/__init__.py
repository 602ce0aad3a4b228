"""Use of agreements: grants of reads with counters and leases, facts about parties, duties, receipts."""
