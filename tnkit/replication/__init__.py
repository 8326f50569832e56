"""The study of Tezuka & Inoue (EMNLP 2025) run whole on a model, as a folder of tables and figures and one page."""
