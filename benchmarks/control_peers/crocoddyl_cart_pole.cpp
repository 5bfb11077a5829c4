// Crocoddyl's cart-pole example (notebook 02 of its wheel) with the action model in C++, as its own C++ models are written.
//
// usage: cart_pole y angle speed rate w1 ... w6, the last six being the terminal weights; then one solve for each line of input, as the
// notebook starts (every state the first one), or where the line asks for "compiled, rolled out" from a rollout without force.
// Compile without -march=native: Eigen's alignment must be that of the wheel's library.
#include <chrono>
#include <iostream>
#include <sstream>
#include <string>

#include "crocoddyl/core/optctrl/shooting.hpp"
#include "crocoddyl/core/solvers/fddp.hpp"
#include "crocoddyl/core/states/euclidean.hpp"

using crocoddyl::ActionDataAbstract;
using Ref = Eigen::Ref<const Eigen::VectorXd>;
using Data = std::shared_ptr<ActionDataAbstract>;

struct CartPole : crocoddyl::ActionModelAbstract {
  Eigen::Matrix<double, 6, 1> w;
  double dt = 5e-2, cart = 1.0, pole = 0.1, length = 0.5, gravity = 9.81;

  explicit CartPole(const Eigen::Matrix<double, 6, 1>& weights)
      : crocoddyl::ActionModelAbstract(std::make_shared<crocoddyl::StateVector>(4), 1, 6), w(weights) {}

  std::shared_ptr<crocoddyl::ActionModelBase> cloneAsDouble() const override { return std::make_shared<CartPole>(*this); }
  std::shared_ptr<crocoddyl::ActionModelBase> cloneAsFloat() const override { throw std::runtime_error("double only"); }

  void charge(const Data& d, const Ref& x, double f) {
    const double s = std::sin(x[1]), c = std::cos(x[1]);
    d->r << w[0] * s, w[1] * (1 - c), w[2] * x[0], w[3] * x[2], w[4] * x[3], w[5] * f;
    d->cost = 0.5 * d->r.squaredNorm();
  }

  void calc(const Data& d, const Ref& x, const Ref& u) override {
    const double s = std::sin(x[1]), c = std::cos(x[1]), f = u[0], rate = x[3], mu = cart + pole * s * s;
    const double a = (f + pole * gravity * c * s - pole * length * s * rate * rate) / mu;
    const double b = (f / length * c + (cart + pole) * gravity / length * s - pole * c * s * rate * rate) / mu;
    const double v = x[2] + dt * a, n = x[3] + dt * b;
    d->xnext << x[0] + dt * v, x[1] + dt * n, v, n;
    charge(d, x, f);
  }

  void calc(const Data& d, const Ref& x) override {
    d->xnext = x;
    charge(d, x, 0.0);
  }

  void slopes(const Data& d, const Ref& x) {
    const double s = std::sin(x[1]), c = std::cos(x[1]);
    const Eigen::Matrix<double, 6, 1> q = w.cwiseAbs2();
    d->Lx << q[2] * x[0], q[0] * s * c + q[1] * (1 - c) * s, q[3] * x[2], q[4] * x[3];
    d->Lxx.diagonal() << q[2], q[0] * (c * c - s * s) + q[1] * ((1 - c) * c + s * s), q[3], q[4];
  }

  void calcDiff(const Data& d, const Ref& x, const Ref& u) override {
    const double s = std::sin(x[1]), c = std::cos(x[1]), f = u[0], rate = x[3], mu = cart + pole * s * s;
    const double a = (f + pole * gravity * c * s - pole * length * s * rate * rate) / mu;
    const double b = (f / length * c + (cart + pole) * gravity / length * s - pole * c * s * rate * rate) / mu;
    const double turn = 2 * pole * s * c, twice = c * c - s * s;
    const double a1 = (pole * gravity * twice - pole * length * c * rate * rate - turn * a) / mu;
    const double a3 = -2 * pole * length * s * rate / mu, au = 1 / mu;
    const double b1 = (-f / length * s + (cart + pole) * gravity / length * c - pole * twice * rate * rate - turn * b) / mu;
    const double b3 = -2 * pole * c * s * rate / mu, bu = c / (length * mu);
    d->Fx << 1, dt * dt * a1, dt, dt * dt * a3, 0, 1 + dt * dt * b1, 0, dt + dt * dt * b3, 0, dt * a1, 1, dt * a3, 0, dt * b1, 0, 1 + dt * b3;
    d->Fu << dt * dt * au, dt * dt * bu, dt * au, dt * bu;
    slopes(d, x);
    d->Lu[0] = w[5] * w[5] * f;
    d->Luu(0, 0) = w[5] * w[5];
  }

  void calcDiff(const Data& d, const Ref& x) override {
    d->Fx.setIdentity();
    slopes(d, x);
  }
};

using Clock = std::chrono::steady_clock;

struct History : crocoddyl::CallbackAbstract {
  Clock::time_point begun;
  std::ostringstream text;
  int count = 0;
  void operator()(crocoddyl::SolverAbstract& solver) override {
    if (!solver.get_is_feasible()) return;
    text << (count++ ? "," : "") << "[" << std::chrono::duration<double>(Clock::now() - begun).count() << "," << solver.get_cost() << "]";
  }
};

int main(int argc, char** argv) {
  if (argc != 11) return 2;
  Eigen::Vector4d start;
  Eigen::Matrix<double, 6, 1> running, terminal;
  running << 1.0, 1.0, 0.1, 0.001, 0.001, 1.0;
  for (int i = 0; i < 4; ++i) start[i] = std::stod(argv[1 + i]);
  for (int i = 0; i < 6; ++i) terminal[i] = std::stod(argv[5 + i]);
  const int steps = 50;
  std::vector<std::shared_ptr<crocoddyl::ActionModelAbstract>> models(steps, std::make_shared<CartPole>(running));
  auto problem = std::make_shared<crocoddyl::ShootingProblem>(start, models, std::make_shared<CartPole>(terminal));
  problem->set_nthreads(1);
  std::cout.precision(17);
  std::cout << "{\"solvers\": [\"compiled\", \"compiled, rolled out\"], \"settings\": \"SolverFDDP, C++, -O3\"}" << std::endl;
  std::string line;
  while (std::getline(std::cin, line)) {
    crocoddyl::SolverFDDP solver(problem);
    auto history = std::make_shared<History>();
    history->text.precision(17);
    solver.setCallbacks({history});
    history->begun = Clock::now();
    if (line.find("rolled out") == std::string::npos) {
      solver.solve();
    } else {
      const std::vector<Eigen::VectorXd> still(steps, Eigen::VectorXd::Zero(1));
      solver.solve(problem->rollout_us(still), still, 500, true);
    }
    const double seconds = std::chrono::duration<double>(Clock::now() - history->begun).count();
    std::cout << "{\"seconds\": " << seconds << ", \"iterations\": " << solver.get_iter() << ", \"claimed\": " << solver.get_cost()
              << ", \"history\": [" << history->text.str() << "], \"actions\": [";
    for (int t = 0; t < steps; ++t) std::cout << (t ? "," : "") << "[" << solver.get_us()[t][0] << "]";
    std::cout << "]}" << std::endl;
  }
}
