"""Points, boxes, scribbles and lasso through a server of nnInteractive; an optional extra."""
