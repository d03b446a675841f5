"""Transformers and deep learners on the toy environments, judged by their exact solutions."""
