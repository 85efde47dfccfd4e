"""Who people are and what they may do: accounts, first run, roles."""
