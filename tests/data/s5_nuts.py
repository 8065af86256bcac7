"""Write `s5_nuts.csv`: the posterior of the Bayesian Gaussian mixture of 100 rows, by a long run of NUTS.

``PYTHONPATH=tests python tests/data/s5_nuts.py``, with NumPyro 0.22 and ArviZ 0.23 installed, takes two minutes. The
rows are those of the published figures; means have the prior N(0, I), weights Dirichlet(0.1, 0.1), components unit
covariance. All chains start near the mode whose first component is the smaller one, and the run fails if one of them
leaves it, so that labels match. Columns: posterior mean and sd, their Monte-Carlo standard errors, and the effective
sample size of the mean.

What NUTS finds is checked by importance sampling from a Student's t at the mode, independent of it and more precise:
the run fails where a mean or sd differs by more than four standard errors of the difference. But for the swap of labels
this is the whole posterior: the probability that a component has no rows, printed too, is exact and is 1.4e-9.
"""

from pathlib import Path

import arviz
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betaln
from jax.scipy.stats import norm
from numpyro.infer import MCMC, NUTS
from scipy.optimize import minimize
from scipy.stats import multivariate_t

from conftest import published_rows

jax.config.update("jax_enable_x64", True)
NAMES = ["weights[0]", "weights[1]", "means[0,0]", "means[0,1]", "means[1,0]", "means[1,1]"]
CONCENTRATION, CHAINS, DRAWS, CHECKS, BLOCK = 0.1, 8, 100_000, 4_000_000, 100_000
X = published_rows()


def log_density(theta):
    """Of the log-odds of the first weight, then the means row by row; the prior is normalised."""
    log_w, means = -jax.nn.softplus(theta[0] * jnp.array([-1, 1])), theta[1:].reshape(2, 2)
    parts = log_w + norm.logpdf(X[:, None], means).sum(2)
    log_prior = CONCENTRATION * log_w.sum() - betaln(CONCENTRATION, CONCENTRATION) + norm.logpdf(means).sum()
    return jax.nn.logsumexp(parts, axis=1).sum() + log_prior


def potential(theta):
    return -log_density(theta)


def original(theta):
    weight = jax.nn.sigmoid(theta[..., :1])
    return np.concatenate([weight, 1 - weight, theta[..., 1:]], axis=-1)


def by_nuts(mode, covariance):
    starts = np.random.default_rng(0).multivariate_normal(mode, covariance, CHAINS)
    mcmc = MCMC(
        NUTS(potential_fn=potential),
        num_warmup=2000,
        num_samples=DRAWS,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), init_params=jnp.asarray(starts))
    draws = original(np.asarray(mcmc.get_samples(group_by_chain=True)))
    if (draws[..., 0] > 0.5).any():
        raise RuntimeError("a chain changed its labels")
    found = arviz.summary(dict(zip(NAMES, np.moveaxis(draws, 2, 0), strict=True)), kind="all", round_to="none")
    if not (found["r_hat"] < 1.001).all():
        raise RuntimeError(f"the chains do not agree: {found}")
    effective = (found["sd"] / found["mcse_mean"]) ** 2
    return found[["mean", "sd", "mcse_mean", "mcse_sd"]].assign(ess=effective)


def by_importance(mode, covariance):
    """Return means, sds and their standard errors, and the log evidence of this labelling."""
    proposal, rng = multivariate_t(mode, 1.2 * covariance, df=6), np.random.default_rng(1)
    theta = proposal.rvs(CHECKS, random_state=rng)
    log_density_of_block = jax.jit(jax.vmap(log_density))
    log_p = np.concatenate([log_density_of_block(block) for block in np.split(theta, CHECKS // BLOCK)])
    ratios = np.exp(log_p - proposal.logpdf(theta))
    weights, values = ratios / ratios.sum(), original(theta)
    means = weights @ values
    squares = (values - means) ** 2
    sds = np.sqrt(weights @ squares)
    mean_errors = np.sqrt(weights**2 @ squares)
    sd_errors = np.sqrt(weights**2 @ (squares - sds**2) ** 2) / (2 * sds)
    return means, sds, mean_errors, sd_errors, np.log(ratios.mean())


def log_joint_without_a_component():
    """Of the rows and that the first component has none of them, in closed form."""
    n, d = X.shape
    fit = -0.5 * ((X - X.mean(0)) ** 2).sum() - 0.5 * n / (n + 1) * (X.mean(0) ** 2).sum()
    log_evidence = fit - 0.5 * d * (n * np.log(2 * np.pi) + np.log(n + 1))
    return log_evidence + betaln(CONCENTRATION, CONCENTRATION + n) - betaln(CONCENTRATION, CONCENTRATION)


def main():
    mode = minimize(jax.value_and_grad(potential), [-2, -1, -1.5, 1, 1], jac=True).x
    covariance = np.linalg.inv(jax.hessian(potential)(mode))
    table = by_nuts(mode, covariance)
    means, sds, mean_errors, sd_errors, log_evidence = by_importance(mode, covariance)
    mean_z = (table["mean"] - means) / np.hypot(table["mcse_mean"], mean_errors)
    sd_z = (table["sd"] - sds) / np.hypot(table["mcse_sd"], sd_errors)
    print(table.assign(check_mean=means, check_sd=sds, mean_z=mean_z, sd_z=sd_z).to_string())
    print(f"log evidence of one labelling: {log_evidence:.5f}")
    # The two labellings together have twice the evidence, and so many ways to leave a component without rows.
    print(f"probability of an empty component: {np.exp(log_joint_without_a_component() - log_evidence):.2g}")
    if not (np.abs(np.concatenate([mean_z, sd_z])) < 4).all():
        raise RuntimeError("NUTS and importance sampling differ")
    path = Path(__file__).with_suffix(".csv")
    table.to_csv(path, index_label="quantity", float_format="%.6g", lineterminator="\n")


if __name__ == "__main__":
    main()
