"""Image data: folders, CIFAR, STL-10, ImageNet, MNIST-5k and multi-view folders."""
