"""Pages, plots and an HTML report, all made from the CSV files of benchmarks/results/."""
