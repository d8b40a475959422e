"""From graphs to better graphs: patterns, rules, the pipeline, fusion, order and memory."""
