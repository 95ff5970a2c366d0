"""Hyperparameters of main_bayesian.py: edit them here, or give any of them on the command line by its name."""

# Data
dataset = "MNIST5k"  # MNIST5k (embedded, no network), MNIST, CIFAR10, CIFAR100, or a folder of images
data_dir = "data"
valid_size = 0.1  # fraction of the training images kept for validation
random_shift = 2  # pixels
random_flip = "auto"  # True, False, or auto: images in color only
num_workers = 4  # used only when the images do not fit in memory

# Network
net_type = "lenet"  # lenet, alexnet, 3conv3fc, resnet18, or package.module:factory of your own
activation_type = "relu"  # relu, softplus
layer_type = "bbb"  # bbb: one draw of the weights a step; lrt: noise on every output; flipout: a sign an example
alpha_shape = None  # None: Gaussian posterior N(μ, σ²); (1, 1): N(μ, αμ²) with one α a layer
priors = {
    "prior_mu": 0.0,
    "prior_sigma": 1.0,
    "posterior_mu_initial": None,  # (mean, std), or None for torch's initialization by fan-in
    "posterior_rho_initial": (-5.0, 0.1),  # (mean, std); σ = softplus(ρ)
}
init_from = None  # a frequentist checkpoint whose weights the posterior means start from
moped = None  # with init_from: σ starts at so many times |w|
prior_at_means = False  # with init_from: the prior is centred at those weights

# Objective
beta_type = 0.03  # Standard, Blundell, Soenderby, or the KL's weight: 1 is the true posterior, below 1 a cold one
train_ens = 1  # posterior samples a training step
valid_ens = 5  # … in validation
test_ens = 25  # … in the final test

# Optimization
n_epochs = 30
batch_size = 128
lr_start = 1e-3  # LeNet bears 3e-3 and gains by it; 3conv3fc is stuck at chance with it
lr_spread_factor = 10.0  # ρ and log α learn so many times as fast: they have far to go
lr_schedule = "linear"  # constant, linear, cosine
patience = 0  # epochs without a better validation NLL before stopping; 0 for never

# Running
seed = 0
device = "auto"
amp = False
compile = False
deterministic = False  # on a CPU the same seed gives the same numbers anyway
resume = False
checkpoint_dir = "checkpoints"
tensorboard = False

# Recording
record_mean_var = False
recording_freq_per_epoch = 32
record_layers = None  # names such as ["conv1", "fc3"], or None for all
