"""From PyTorch to the IR: capture by torch.export or Dynamo, and the table from ATen operators to ours."""
