"""GemNet-OC (Gasteiger et al., TMLR 2022, arXiv 2204.02782), which JMP's weights are for, in the shape of those."""
