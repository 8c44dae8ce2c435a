"""Charts of a report, as SVG that is written into the page."""
