"""The command `baechi`: a thin main and one module per subcommand."""
