"""Evaluation: accuracy and mAP over temporal x spatial views."""
