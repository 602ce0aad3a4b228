"""Evidence on the reader's side: offline verification, matching of two logs, receipts."""
