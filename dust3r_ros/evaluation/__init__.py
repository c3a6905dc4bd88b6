"""How good a reconstruction is: errors against the truth of posed image packs."""
