"""Where published engines are found: their names, the catalogue of those known, and hubs that hold them."""
