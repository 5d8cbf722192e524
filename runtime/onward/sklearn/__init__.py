"""Networks as scikit-learn estimators: pipelines, searches and cross-validation take them as they are.

model = OnwardClassifier(hidden=(64,), epochs=30, random_state=0).fit(X, y)
model.predict_proba(X_test)
model.export("model.onnx")    # takes X as it is, and gives the probabilities
"""

from onward.sklearn.classifier import OnwardClassifier
from onward.sklearn.regressor import OnwardRegressor

__all__ = ["OnwardClassifier", "OnwardRegressor"]
