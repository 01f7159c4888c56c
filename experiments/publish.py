"""All that a finished study leaves for its readers."""

from pathlib import Path

from experiments import picture, report, study_figures
from experiments.recipes import RECIPES
from experiments.studies import Study


def publish(study: Study) -> list[Path]:
    """Writes pictures, CSV and report into the study's folder, and returns where."""
    config, records, summary, _ = study
    pictures = [picture.draw(config, summary, records)]
    if len(config.noise) > 1:
        pictures.append(study_figures.draw_noise(config, summary))
    if not RECIPES.keys().isdisjoint(config.methods):
        pictures.append(study_figures.draw_frontier(config, summary))
    if len(study_figures.ratios(config)) > 3:
        pictures.append(study_figures.draw_ratios(config, summary))
    if "flatness" in config.measure:
        pictures.append(study_figures.draw_flatness(config, records))
    return [*pictures, report.write_csv(study), report.write_markdown(study, pictures)]
