"""The half that distributes: placement, transport and retries on Ray. No mathematics and no config parsing."""
