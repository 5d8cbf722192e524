"""How families of operators become kernel calls; `Lowering` offers these to the operators' `lower` rules."""
