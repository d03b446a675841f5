"""Learners on the lm_envs environments: training, evaluation and generation scripts. Run from a checkout."""
