"""A local web page over a run: look at its images, try edits, and collect them in a list for the job.

`page` lays it out with Gradio; the other files know nothing of it.
"""

import os

# Gradio reads it
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
