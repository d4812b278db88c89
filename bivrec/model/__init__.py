"""The layers of BiVRec, its two towers, and what joins them."""
