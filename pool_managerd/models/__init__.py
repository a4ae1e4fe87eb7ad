"""Model files of this host: found, fetched as the policy allows, verified; and tiny ones, made."""
