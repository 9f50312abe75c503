//! Small models whose maps and limits can be followed by hand.

use drivetrain_device_map::{
    Device, Dtype, Limits, Mode, Model, Module, Placement, Plan, Sizes, Sizing, Tensor, Warning,
    balanced, infer,
};

fn linear(name: &str, inputs: u64, outputs: u64) -> Module {
    Module::new(name, "Linear")
        .with_parameter(Tensor::new("weight", inputs * outputs, Dtype::F32))
        .with_parameter(Tensor::new("bias", outputs, Dtype::F32))
}

fn batch_norm(name: &str, n: u64) -> Module {
    Module::new(name, "BatchNorm1d")
        .with_parameter(Tensor::new("weight", n, Dtype::F32))
        .with_parameter(Tensor::new("bias", n, Dtype::F32))
        .with_buffer(Tensor::new("running_mean", n, Dtype::F32))
        .with_buffer(Tensor::new("running_var", n, Dtype::F32))
        .with_buffer(Tensor::new("num_batches_tracked", 1, Dtype::I64))
}

/// 64, 72 and 100 bytes.
fn m(name: &str) -> Module {
    Module::new(name, "M")
        .with_child(linear("linear1", 3, 4))
        .with_child(batch_norm("batchnorm", 4))
        .with_child(linear("linear2", 4, 5))
}

fn group(children: impl IntoIterator<Item = Module>) -> Module {
    children.into_iter().fold(Module::new("", "Group"), Module::with_child)
}

fn model(root: Module, ties: &[&[&str]]) -> Model {
    let ties = ties.iter().map(|group| group.iter().map(|&name| name.to_owned()).collect());
    Model::new(root, ties.collect()).unwrap()
}

fn plan(model: &Model, max_memory: &str, placement: &Placement) -> Plan {
    let limits: Limits = max_memory.parse().unwrap();
    infer(&Sizes::new(model, Sizing::default()), &limits, placement)
}

fn map(plan: &Plan) -> Vec<(String, String)> {
    plan.map.iter().map(|(name, device)| (name.to_owned(), device.to_string())).collect()
}

fn check(model: &Model, max_memory: &str, placement: &Placement, expect: &[(&str, &str)]) {
    let expect: Vec<(String, String)> =
        expect.iter().map(|(name, device)| ((*name).to_owned(), (*device).to_owned())).collect();
    let plan = plan(model, max_memory, placement);
    assert_eq!(map(&plan), expect, "{max_memory}");
    plan.map.check(model).unwrap();
}

/// As [`check`], with the defaults.
fn check_map(model: &Model, max_memory: &str, expect: &[(&str, &str)]) {
    check(model, max_memory, &Placement::default(), expect);
}

#[test]
fn sizes_are_the_tensors() {
    let model = model(m(""), &[]);
    let sizes = Sizes::new(&model, Sizing::default());
    let parts = ["", "linear1", "batchnorm", "linear2", "linear2.bias"];
    assert_eq!(parts.map(|name| sizes.bytes_of(name).unwrap()), [236, 64, 72, 100, 20]);
}

#[test]
fn a_model_is_filled_in_order() {
    let model = model(m(""), &[]);
    let expect = [("linear1", "0"), ("batchnorm", "1"), ("linear2", "1")];
    check_map(&model, "0:200,1:200", &expect);
    check_map(&model, "0:200,1:172,2:200", &expect);
}

#[test]
fn a_tied_model_takes_less() {
    // The first layer has the weight of the second: 5 rows of 4.
    let root = Module::new("", "M")
        .with_child(
            Module::new("linear1", "Linear")
                .with_parameter(Tensor::new("weight", 20, Dtype::F32))
                .with_parameter(Tensor::new("bias", 4, Dtype::F32)),
        )
        .with_child(batch_norm("batchnorm", 4))
        .with_child(linear("linear2", 4, 5));
    let model = model(root, &[&["linear1.weight", "linear2.weight"]]);
    check_map(&model, "0:200,1:200", &[("", "0")]);
}

#[test]
fn large_modules_are_split_unless_they_may_not() {
    let model = model(group(["0", "1", "2"].map(m)), &[]);
    check_map(
        &model,
        "0:500,1:500",
        &[("0", "0"), ("1.linear1", "0"), ("1.batchnorm", "0"), ("1.linear2", "1"), ("2", "1")],
    );
    let placement = Placement { no_split_classes: vec!["M".to_owned()], ..Placement::default() };
    check(&model, "0:500,1:500", &placement, &[("0", "0"), ("1", "1"), ("2", "1")]);
}

#[test]
fn tied_modules_go_together() {
    let layers = || group(["layer1", "layer2", "layer3"].map(m));
    let last = ["layer1.linear2.weight", "layer3.linear2.weight"];
    check_map(
        &model(layers(), &[&last]),
        "0:400,1:500",
        &[
            ("layer1", "0"),
            ("layer3.linear2", "0"),
            ("layer2", "1"),
            ("layer3.linear1", "1"),
            ("layer3.batchnorm", "1"),
        ],
    );
    let all = ["layer1.linear2.weight", "layer2.linear2.weight", "layer3.linear2.weight"];
    check_map(
        &model(layers(), &[&all]),
        "0:400,1:500",
        &[
            ("layer1", "0"),
            ("layer2.linear2", "0"),
            ("layer3.linear2", "0"),
            ("layer2.linear1", "1"),
            ("layer2.batchnorm", "1"),
            ("layer3.linear1", "1"),
            ("layer3.batchnorm", "1"),
        ],
    );
    let first = ["layer1.linear1.weight", "layer2.linear1.weight"];
    check_map(
        &model(layers(), &[&all, &first]),
        "0:400,1:500",
        &[
            ("layer1", "0"),
            ("layer2.linear1", "0"),
            ("layer2.linear2", "0"),
            ("layer3.linear2", "0"),
            ("layer2.batchnorm", "1"),
            ("layer3.linear1", "1"),
            ("layer3.batchnorm", "1"),
        ],
    );
}

#[test]
fn a_module_may_be_tied_by_all_it_has() {
    let root = group([
        linear("linear1", 4, 4),
        linear("linear2", 6, 6),
        linear("linear3", 4, 4),
        linear("linear4", 6, 6),
    ]);
    let ties: [&[&str]; 2] =
        [&["linear1.weight", "linear3.weight"], &["linear1.bias", "linear3.bias"]];
    let expect = [("linear1", "0"), ("linear3", "0"), ("linear2", "1"), ("linear4", "1")];
    check_map(&model(root, &ties), "0:250,1:400", &expect);
}

#[test]
fn fallback_finds_what_fits() {
    let inner = Module::new("module", "Group")
        .with_child(linear("linear1", 10, 4))
        .with_child(linear("linear2", 4, 4))
        .with_child(linear("linear3", 4, 8));
    let model = model(group([inner]), &[]);
    let nothing = plan(&model, "0:256", &Placement::default());
    assert!(nothing.map.iter().all(|(_, device)| device == Device::Disk), "{nothing:?}");
    // 176 bytes for the first layer, and as many for one that comes from the disk.
    let device = Device::Accelerator(0);
    assert_eq!(nothing.warnings, [Warning::InsufficientMemory { device, needed_bytes: 336 }]);
    assert!(nothing.warnings[0].to_string().contains("insufficient memory"));
    let placement = Placement { fallback_allocation: true, ..Placement::default() };
    let expect = [("module.linear2", "0"), ("module.linear1", "disk"), ("module.linear3", "disk")];
    check(&model, "0:256", &placement, &expect);
    assert_eq!(plan(&model, "0:256", &placement).warnings, []);
}

#[test]
fn limits_are_balanced() {
    let model = model(m(""), &[]);
    let sizes = Sizes::new(&model, Sizing::default());
    for (given, expect) in [
        ("0:200,1:200", vec![200, 200]),
        ("0:300,1:300", vec![215, 300]),
        ("0:300,1:500", vec![215, 500]),
        ("0:300,cpu:1000", vec![300, 1000]),
        ("0:0,1:300,2:300", vec![0, 215, 300]),
    ] {
        let limits: Limits = given.parse().unwrap();
        for mode in [Mode::Balanced, Mode::Auto] {
            let found = balanced(&sizes, &limits, &[], mode);
            assert_eq!(found.iter().map(|(_, bytes)| bytes).collect::<Vec<_>>(), expect, "{given}");
        }
        assert_eq!(balanced(&sizes, &limits, &[], Mode::Sequential), limits);
    }
}

#[test]
fn a_tenth_of_measured_memory_stays_free() {
    let model = model(m(""), &[]);
    let sizes = Sizes::new(&model, Sizing::default());
    let (gpu, cpu) = (Device::Accelerator(0), Device::Cpu);
    let found = |limits| {
        let limits = balanced(&sizes, &limits, &[], Mode::Auto);
        (limits.get(gpu).unwrap(), limits.get(cpu).unwrap())
    };
    assert_eq!(found(Limits::measured([(gpu, 1001), (cpu, 100)])), (900, 100));
    assert_eq!(found(Limits::given([(gpu, 1001), (cpu, 100)])), (1001, 100));
}

#[test]
fn buffers_that_stay_behind_need_room() {
    let model = model(m(""), &[]);
    let warnings = |max_memory: &str, offload_buffers| {
        let placement = Placement { offload_buffers, ..Placement::default() };
        plan(&model, max_memory, &placement).warnings
    };
    let found = warnings("0:164,cpu:1000", false);
    assert_eq!(found, [Warning::BuffersDontFit { buffer_bytes: 40 }]);
    assert_eq!(warnings("0:164,cpu:1000", true), []);
    // The first layer, what is kept free, and the buffers.
    assert_eq!(warnings("0:204,cpu:1000", false), []);
}

#[test]
fn a_buffer_directly_in_a_split_module_is_listed() {
    let block = m("block").with_buffer(Tensor::new("mask", 2, Dtype::F32));
    let model = model(group([block]), &[]);
    let split = plan(&model, "0:200,1:300", &Placement::default());
    let expect = [("block.linear1", "0"), ("block.batchnorm", "1"), ("block.linear2", "1")];
    let expect = expect.map(|(name, device)| (name.to_owned(), device.to_owned()));
    assert_eq!(map(&split), expect);
    let error = split.map.check(&model).unwrap_err().to_string();
    assert!(error.starts_with("device_map: no device for block.mask;"), "{error}");
}
