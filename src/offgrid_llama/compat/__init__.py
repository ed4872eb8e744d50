"""Drop-in replacements for other packages, one each: the same names, which run on this package."""
