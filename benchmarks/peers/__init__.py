"""The same work done by other libraries, for side-by-side timing; needs the extra ``peers``."""
