"""Levels of theory of the data sets that teachers of several families were trained on, each written once."""

MPTRJ = "PBE and PBE+U, Materials Project (MPtrj)"
MPA = "PBE and PBE+U, Materials Project (MPtrj) and Alexandria (sAlex)"
OMAT = "PBE and PBE+U, VASP 5.4 pseudopotentials (OMat24)"
OMOL = "ωB97M-V/def2-TZVPD (OMol25)"
MATPES_R2SCAN = "r2SCAN, MatPES"
