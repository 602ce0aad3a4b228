"""What every service needs: inbound HTTP limits, the outbound client, queues, databases and files."""
