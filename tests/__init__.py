"""The suite. It is a package so that its modules share the references and strategies by name."""
