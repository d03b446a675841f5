"""Text generation as Gymnasium environments: importing this registers the ids of `lm_envs.registration`."""

from lm_envs.registration import register_all

__version__ = "0.1.0"

register_all()
