"""Multi-step arithmetic word problems, and the tiny reasoner that is trained on them."""
