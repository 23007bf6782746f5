"""The stores: one behaviour, two places."""
