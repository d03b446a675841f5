"""How the bundled language model is made: the story world it learned from, and its training (`__main__`)."""
