"""Pictures of models: ``from_estimator`` computes, ``plot`` draws."""
