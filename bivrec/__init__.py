"""Transferable multimodal sequential recommendation (BiVRec, arXiv 2402.17334)."""
