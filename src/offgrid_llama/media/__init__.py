"""Pictures and sound, for models with a projector (libmtmd, mtmd.h)."""
