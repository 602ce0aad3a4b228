"""OpenID Connect as a relying party, for connector and catalogue. Must know neither sessions nor scopes."""
