"""The intermediate representation: types, operators, nodes, graphs, their text, their checks, their meaning."""
